"""What serves: the model server, its routes, and how a request becomes scores."""
