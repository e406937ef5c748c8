#!/bin/sh
# Writes the stubs to build/tickwheelv1, a package of this module. PROTOC is a protoc, or what behaves like one;
# GOOGLEAPIS the directory that holds google/api/*.proto and google/rpc/*.proto. The plugins are tools of go.mod.
set -eu
cd "$(dirname "$0")"
PROTO=${PROTO:-../../../proto}
GOOGLEAPIS=${GOOGLEAPIS:?set it to the directory that holds google/api/annotations.proto}
PACKAGE=tickwheel.example/scenario/build/tickwheelv1
rm -rf build/tickwheelv1
mkdir -p build/bin
GOBIN="$PWD/build/bin" go install tool
PATH="$PWD/build/bin:$PATH"
# The files name no Go package, since that is the user's to choose: one M option for each.
names=
for file in "$PROTO"/tickwheel/v1/*.proto; do
  name=tickwheel/v1/${file##*/}
  names="$names --go_opt=M$name=$PACKAGE --go-grpc_opt=M$name=$PACKAGE"
done
# shellcheck disable=SC2086  # PROTOC may be a command with arguments
${PROTOC:-protoc} -I"$PROTO" -I"$GOOGLEAPIS" $names \
  --go_out=. --go_opt=module=tickwheel.example/scenario \
  --go-grpc_out=. --go-grpc_opt=module=tickwheel.example/scenario \
  "$PROTO"/tickwheel/v1/*.proto
