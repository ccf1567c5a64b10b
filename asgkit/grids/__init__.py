"""Which runs belong together: YAML files, their loader, and one run of them as an `Experiment`."""
