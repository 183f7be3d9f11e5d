"""Controls that questions of several subjects share: random weights, shuffles and their floors."""
