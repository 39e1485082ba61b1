"""The engine: finds an experiment, validates it, trains, resumes and tests its models on MMEngine."""
