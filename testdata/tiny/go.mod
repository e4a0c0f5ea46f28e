module github.com/slipway-ci/slipway/testdata/tiny

go 1.20
