"""Learning-rate schedules: pure functions of the step, made of phases."""
