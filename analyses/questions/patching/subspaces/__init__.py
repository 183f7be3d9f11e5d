"""Which directions of a token carry what the answer goes by? A learned subspace with its placebos; erasing one."""
