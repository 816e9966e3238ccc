"""Training: loop, objectives, losses, teachers, and the machine that runs it."""
