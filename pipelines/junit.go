package pipelines

import (
	"bytes"
	"encoding/xml"
	"fmt"
	"strings"

	"github.com/slipway-ci/slipway/pipelines/internal/testjson"
)

// The elements of JUnit's XML that GitHub actions, GitLab and Jenkins read. There is no schema that all
// follow; this is the part that they share (https://github.com/testmoapp/junitxml).
type junitSuites struct {
	XMLName  xml.Name     `xml:"testsuites"`
	Tests    int          `xml:"tests,attr"`
	Failures int          `xml:"failures,attr"`
	Suites   []junitSuite `xml:"testsuite"`
}

type junitSuite struct {
	Name       string          `xml:"name,attr"`
	Tests      int             `xml:"tests,attr"`
	Failures   int             `xml:"failures,attr"`
	Skipped    int             `xml:"skipped,attr"`
	Time       string          `xml:"time,attr"`
	Properties []junitProperty `xml:"properties>property"`
	Cases      []junitCase     `xml:"testcase"`
}

type junitProperty struct {
	Name  string `xml:"name,attr"`
	Value string `xml:"value,attr"`
}

type junitCase struct {
	Class   string     `xml:"classname,attr"`
	Name    string     `xml:"name,attr"`
	Time    string     `xml:"time,attr"`
	Failure *junitText `xml:"failure"`
	Skipped *junitText `xml:"skipped"`
}

type junitText struct {
	Message string `xml:"message,attr"`
	Text    string `xml:",chardata"`
}

// junit writes one suite for each package and release.
func (r *TestResult) junit() ([]byte, error) {
	var all junitSuites
	for _, l := range r.Legs {
		properties := []junitProperty{{"go.version", l.Ran}}
		if l.Message != "" {
			all.Suites = append(all.Suites, junitSuite{Name: l.Module + " (Go " + l.Release + ")", Tests: 1, Failures: 1, Time: "0.000", Properties: properties,
				Cases: []junitCase{{Class: l.Module, Name: "go test", Time: "0.000", Failure: &junitText{"go test failed", l.Message}}}})
		}
		for _, p := range l.Packages {
			s := junitSuite{Name: p.Path + " (Go " + l.Release + ")", Time: seconds(p.Seconds), Properties: properties}
			for _, t := range p.Tests {
				c := junitCase{Class: p.Path, Name: t.Name, Time: seconds(t.Seconds)}
				switch t.Result {
				case testjson.Fail:
					c.Failure = &junitText{"failed", t.Output}
					if t.Flaky() {
						c.Failure.Message = fmt.Sprintf("flaky: failed in %d of %d runs", t.FailedRuns, t.Runs)
					}
					s.Failures++
				case testjson.Skip:
					c.Skipped = &junitText{Message: strings.TrimSpace(t.Output)}
					s.Skipped++
				}
				s.Cases = append(s.Cases, c)
			}
			if p.Result == testjson.Fail && s.Failures == 0 {
				s.Cases = append(s.Cases, junitCase{Class: p.Path, Name: "package", Time: seconds(0), Failure: &junitText{"failed", p.Output}})
				s.Failures++
			}
			s.Tests = len(s.Cases)
			if s.Tests > 0 {
				all.Suites = append(all.Suites, s)
			}
		}
	}
	for _, s := range all.Suites {
		all.Tests += s.Tests
		all.Failures += s.Failures
	}
	var b bytes.Buffer
	b.WriteString(xml.Header)
	e := xml.NewEncoder(&b)
	e.Indent("", "  ")
	if err := e.Encode(all); err != nil {
		return nil, fmt.Errorf("junit.xml: %w", err)
	}
	b.WriteByte('\n')
	return b.Bytes(), nil
}

func seconds(s float64) string { return fmt.Sprintf("%.3f", s) }
