"""What a node and its clients share: the model of its status, results and codes on the wire, batches, patience."""
