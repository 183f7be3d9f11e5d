"""Looking before measuring: what tokens attend to, and what follows from changing it, for single images."""
