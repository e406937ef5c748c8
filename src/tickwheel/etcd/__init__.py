"""What etcd speaks: the few messages of its v3 API that a node uses. No part of the API of this project."""
