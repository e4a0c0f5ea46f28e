module github.com/slipway-ci/slipway/testdata/serves

go 1.20
