"""Data transfer processes: the planes that carry data connections (RFC 959 section 2.2, "DTP")."""
