"""What calibration measures against: the level, the power aimed at, the margin, and how much is simulated."""

LEVEL = 0.05
POWER = 0.8
MARGIN = 1.0
"""Points, as a study has it that states none."""
CHUNK = 100
RESAMPLES = 400
PILOTS = 200
MAX_PLANNED = 40
