//! Hidden states to action chunks: heads with loss and sampling side by side, normalisation, and VLAs.
