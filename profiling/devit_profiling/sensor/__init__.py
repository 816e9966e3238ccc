"""Power sensors of a Jetson: lines, rails, boards, and the programs that read them."""
