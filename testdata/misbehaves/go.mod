module github.com/slipway-ci/slipway/testdata/misbehaves

go 1.20
