"""What convex optimisation says about learning rates: bounds, transfer, extension, optima."""
