"""Scaling laws from final losses: fits, intervals, optima."""
