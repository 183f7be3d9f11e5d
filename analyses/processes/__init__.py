"""Several processes on one analysis: who does what, how what each has gathered becomes one, how they are started."""
