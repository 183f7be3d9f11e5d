"""What a sparse dictionary finds in the stream and its features do, and which words a head stands for."""
