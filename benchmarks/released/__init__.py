"""Released checkpoints on ImageNet and its relatives, as timm's results tables score them."""
