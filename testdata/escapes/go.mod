module github.com/slipway-ci/slipway/testdata/escapes

go 1.20
