"""Pseudo-livers: predicted by teachers, measured, judged by gates, reviewed by people."""
