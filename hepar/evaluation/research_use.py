"""The note on use that every report and every prediction carries."""

RESEARCH_USE = "Research use only. Not for diagnosis or treatment."
