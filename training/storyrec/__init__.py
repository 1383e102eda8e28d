"""storyrec: which story a user will click, from what they clicked among stories and products."""
