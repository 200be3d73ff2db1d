"""What a quadratic term costs and what it contributes."""
