"""One evaluation of one network on one probe."""
