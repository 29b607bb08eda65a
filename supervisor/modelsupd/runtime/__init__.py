"""ACTS: one module for each kind of effect, and no decisions."""
