"""A page that classifies a photograph with a Dit model and shows what the quadratic term did."""
