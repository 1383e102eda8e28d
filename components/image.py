"""The image of every component; the pipeline sets the one that the settings name."""

BASE_IMAGE = "storyrec-training:latest"
