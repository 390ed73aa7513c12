"""Why did the policy do that? Maps over time, modality and feature, with what proves them."""
