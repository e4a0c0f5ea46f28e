package formats

import (
	"encoding/json"
	"net/url"
	"slices"

	"github.com/slipway-ci/slipway/pipelines"
)

// The part of SARIF 2.1.0 (https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html) that GitHub reads
// (https://docs.github.com/en/code-security/code-scanning/integrating-with-code-scanning/sarif-support-for-code-scanning).
type (
	sarifLog struct {
		Schema  string     `json:"$schema"`
		Version string     `json:"version"`
		Runs    []sarifRun `json:"runs"`
	}
	sarifRun struct {
		Tool struct {
			Driver sarifDriver `json:"driver"`
		} `json:"tool"`
		AutomationDetails struct {
			ID string `json:"id"`
		} `json:"automationDetails"`
		Invocations        []sarifInvocation   `json:"invocations"`
		OriginalURIBaseIDs map[string]sarifURI `json:"originalUriBaseIds"`
		ColumnKind         string              `json:"columnKind"`
		Results            []sarifResult       `json:"results"`
	}
	sarifDriver struct {
		Name           string      `json:"name"`
		Version        string      `json:"version"`
		InformationURI string      `json:"informationUri"`
		Rules          []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID               string          `json:"id"`
		ShortDescription sarifText       `json:"shortDescription"`
		HelpURI          string          `json:"helpUri,omitempty"`
		Properties       *sarifRuleProps `json:"properties,omitempty"`
	}
	sarifRuleProps struct {
		Tags []string `json:"tags"`
	}
	sarifInvocation struct {
		ExecutionSuccessful bool                `json:"executionSuccessful"`
		Notifications       []sarifNotification `json:"toolExecutionNotifications,omitempty"`
	}
	sarifNotification struct {
		Level   string    `json:"level"`
		Message sarifText `json:"message"`
	}
	sarifURI struct {
		URI         string     `json:"uri,omitempty"`
		URIBaseID   string     `json:"uriBaseId,omitempty"`
		Description *sarifText `json:"description,omitempty"`
	}
	sarifResult struct {
		RuleID              string            `json:"ruleId"`
		RuleIndex           int               `json:"ruleIndex"`
		Level               string            `json:"level"`
		Message             sarifText         `json:"message"`
		Locations           []sarifLocation   `json:"locations"`
		PartialFingerprints map[string]string `json:"partialFingerprints"`
	}
	sarifLocation struct {
		PhysicalLocation struct {
			ArtifactLocation sarifURI    `json:"artifactLocation"`
			Region           sarifRegion `json:"region"`
		} `json:"physicalLocation"`
	}
	sarifRegion struct {
		StartLine   int `json:"startLine"`
		StartColumn int `json:"startColumn,omitempty"`
	}
	sarifText struct {
		Text string `json:"text"`
	}
)

const (
	sourceRoot = "%SRCROOT%"
	// GitHub computes primaryLocationLineHash itself, and warns of another value under that name.
	fingerprintName = "slipwayFinding/v1"
)

// checks says what the checks of the vet stage find.
var checks = map[string]string{
	"vet":    "go vet found what does not compile, or a suspicious construct",
	"gofmt":  "A file is not formatted as gofmt does it",
	"tidy":   "go mod tidy changes go.mod or go.sum",
	"verify": "A module in the cache is not what go.sum says",
	"vendor": "go mod vendor changes the vendor directory",
}

// SARIF has one run for each stage that has an answer; it is nil if none has. They are separate, each with an id, so
// that a report without one of them does not close what it found before.
func (r *Run) SARIF() ([]byte, error) {
	log := sarifLog{Schema: "https://json.schemastore.org/sarif-2.1.0.json", Version: "2.1.0", Runs: []sarifRun{}}
	if r.Vet != nil {
		log.Runs = append(log.Runs, r.sarifRun("vet", r.vetIssues(), r.Vet.NotChecked))
	}
	if r.Vuln != nil && r.Vuln.Verdict != pipelines.NotRun && r.Vuln.Verdict != pipelines.Skipped {
		log.Runs = append(log.Runs, r.sarifRun("vuln", r.vulnIssues(), r.Vuln.NotChecked))
	}
	if len(log.Runs) == 0 {
		return nil, nil
	}
	return indented(log)
}

func (r *Run) sarifRun(stage string, issues []issue, notChecked []string) sarifRun {
	run := sarifRun{ColumnKind: "unicodeCodePoints", Results: []sarifResult{}}
	run.Tool.Driver = sarifDriver{Name: "slipway", Version: r.Record.Slipway.Version, InformationURI: "https://github.com/slipway-ci/slipway", Rules: []sarifRule{}}
	run.AutomationDetails.ID = "slipway-" + stage + "/" // what is behind the slash would name a single run
	run.OriginalURIBaseIDs = map[string]sarifURI{sourceRoot: {Description: &sarifText{"The root of the repository"}}}
	invocation := sarifInvocation{ExecutionSuccessful: true}
	for _, n := range notChecked {
		invocation.Notifications = append(invocation.Notifications, sarifNotification{"warning", sarifText{"not checked: " + clean(n)}})
	}
	run.Invocations = []sarifInvocation{invocation}
	driver := &run.Tool.Driver
	for _, i := range issues {
		at := slices.IndexFunc(driver.Rules, func(rule sarifRule) bool { return rule.ID == i.rule })
		if at < 0 {
			at = len(driver.Rules)
			driver.Rules = append(driver.Rules, newRule(i))
		}
		result := sarifResult{
			RuleID: i.rule, RuleIndex: at, Level: "note", Message: sarifText{i.message}, PartialFingerprints: map[string]string{fingerprintName: i.fingerprint},
		}
		if i.failed {
			result.Level = "error"
		}
		var l sarifLocation
		l.PhysicalLocation.ArtifactLocation = sarifURI{URI: (&url.URL{Path: i.file}).String(), URIBaseID: sourceRoot}
		l.PhysicalLocation.Region = sarifRegion{i.line, i.column}
		result.Locations = []sarifLocation{l}
		run.Results = append(run.Results, result)
	}
	return run
}

func newRule(i issue) sarifRule {
	if i.security {
		return sarifRule{
			ID: i.rule, ShortDescription: sarifText{"Known vulnerability " + i.rule}, HelpURI: "https://pkg.go.dev/vuln/" + url.PathEscape(i.rule),
			Properties: &sarifRuleProps{[]string{"security"}},
		}
	}
	check, analyzer := i.check()
	rule := sarifRule{ID: i.rule, ShortDescription: sarifText{checks[check]}}
	if analyzer != "" {
		rule.ShortDescription.Text = "go vet's analyzer " + analyzer + " found a suspicious construct"
	}
	return rule
}

func indented(v any) ([]byte, error) {
	b, err := json.MarshalIndent(v, "", "  ")
	return append(b, '\n'), err
}
