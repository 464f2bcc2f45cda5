"""Train steps and initial weights."""
