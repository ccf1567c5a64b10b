"""The table that lmms-eval reads: name of the model (and of its module here) to name of its class."""

AVAILABLE_MODELS = {"asgkit_backbone": "AsgkitBackbone"}
