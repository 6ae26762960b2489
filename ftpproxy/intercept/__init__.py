"""How connections that are addressed to others become ours."""
