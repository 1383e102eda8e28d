"""The training pipeline as Kubeflow components: one step a file, wired in `pipeline.py`."""
