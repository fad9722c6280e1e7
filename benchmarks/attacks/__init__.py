"""The parts of `benchmarks/faults.py`: what is attacked, and how an attack's end is judged."""
