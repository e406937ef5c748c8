#!/bin/sh
# Writes the stubs to build/stubs. PROTOC is a protoc, or what behaves like one; GOOGLEAPIS the directory that holds
# google/api/*.proto and google/rpc/*.proto.
set -eu
cd "$(dirname "$0")"
PROTO=${PROTO:-../../../proto}
GOOGLEAPIS=${GOOGLEAPIS:?set it to the directory that holds google/api/annotations.proto}
rm -rf build/stubs
mkdir -p build/stubs
PATH="$PWD/node_modules/.bin:$PATH"
# shellcheck disable=SC2086  # PROTOC may be a command with arguments
${PROTOC:-protoc} -I"$PROTO" -I"$GOOGLEAPIS" --ts_out=build/stubs \
  --ts_opt=output_javascript,output_legacy_commonjs,client_grpc1,generate_dependencies \
  "$PROTO"/tickwheel/v1/*.proto
echo '{"type": "commonjs"}' > build/stubs/package.json
