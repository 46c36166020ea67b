"""Quality without a ground truth: a pipeline one scale down, and a result against both inputs."""
