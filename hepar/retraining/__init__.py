"""When to train again, and why: states are compared, suspicious labels are held back, a state is submitted once."""
