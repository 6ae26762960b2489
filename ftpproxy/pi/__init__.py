"""The protocol interpreter (RFC 959 section 2.2, "PI"): octets in, octets and a handful of actions out."""
