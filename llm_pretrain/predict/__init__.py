"""Loss predictor: what a run that was not trained would have ended at, from runs that were."""
