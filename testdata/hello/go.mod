module github.com/slipway-ci/slipway/testdata/hello

go 1.20

require github.com/spf13/pflag v1.0.10
