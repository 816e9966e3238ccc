"""Device and operator's desk: what an answer costs, in milliseconds and joules."""
