"""SMPL and MANO from the user's own files: reading them, skinning, and fitting their parameters to meshes."""
