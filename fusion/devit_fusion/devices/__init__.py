"""What the node knows of each device: its link, its pace, its heat."""
