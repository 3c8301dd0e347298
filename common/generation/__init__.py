"""Folders of generated radiographs: where embeddings come from, how each image was made, where they go."""
