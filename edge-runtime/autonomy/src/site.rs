//! What is known of the site's nodes and replicas.
