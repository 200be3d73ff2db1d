"""What scripts/train.py and scripts/validate.py share."""
