package analysis

import (
	"encoding/json"
	"io"
	"path/filepath"
	"slices"
)

// The parts of SARIF 2.1.0 that findings need.
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
		Results []sarifResult `json:"results"`
	}
	sarifDriver struct {
		Name  string      `json:"name"`
		Rules []sarifRule `json:"rules"`
	}
	sarifRule struct {
		ID               string    `json:"id"`
		ShortDescription sarifText `json:"shortDescription"`
		Help             sarifText `json:"help"`
	}
	sarifText struct {
		Text string `json:"text"`
	}
	sarifResult struct {
		RuleID    string          `json:"ruleId"`
		RuleIndex int             `json:"ruleIndex"`
		Level     string          `json:"level"`
		Message   sarifText       `json:"message"`
		Locations []sarifLocation `json:"locations"`
	}
	sarifLocation struct {
		Physical *sarifPhysical `json:"physicalLocation,omitempty"`
		Logical  []sarifLogical `json:"logicalLocations"`
	}
	sarifPhysical struct {
		Artifact struct {
			URI string `json:"uri"`
		} `json:"artifactLocation"`
		Region struct {
			StartLine int `json:"startLine"`
		} `json:"region"`
	}
	sarifLogical struct {
		FullyQualifiedName string `json:"fullyQualifiedName"`
		Kind               string `json:"kind"`
	}
)

// WriteSARIF writes findings as SARIF 2.1.0, for code review.
func WriteSARIF(w io.Writer, list []Finding) error {
	return sarifRunOf("strake policy lint", list).write(w)
}

// claimRules are what a report finds beside findings, as rules of SARIF.
var claimRules = []sarifRule{
	{"check", sarifText{"An assertion does not hold."}, sarifText{"Correct the policies, or the assertion."}},
	{"proof", sarifText{"The kernel of a node does not judge as the policies say, or did not."}, sarifText{"See the Events of the node, and `strake policy verify` there."}},
	{"history", sarifText{"The node's history of policies was altered."}, sarifText{"Find out by whom: nobody but the agent writes it."}},
	{"probe", sarifText{"A packet did not go as the policies say."}, sarifText{"See `strake trace` and `strake monitor` on the node."}},
}

// WriteSARIF writes a report's findings, and what of it does not hold, as SARIF 2.1.0.
func (r *Report) WriteSARIF(w io.Writer) error {
	run := sarifRunOf("strake policy report", r.Findings)
	first := len(run.Tool.Driver.Rules)
	run.Tool.Driver.Rules = append(run.Tool.Driver.Rules, claimRules...)
	for _, c := range r.claims() {
		if c.holds {
			continue
		}
		rule := slices.IndexFunc(claimRules, func(x sarifRule) bool { return x.ID == c.part })
		where := sarifLocation{Logical: []sarifLogical{{c.name, "object"}}}
		run.Results = append(run.Results, sarifResult{c.part, first + rule, "error", sarifText{c.name + ": " + c.text}, []sarifLocation{where}})
	}
	return run.write(w)
}

func sarifRunOf(tool string, list []Finding) sarifRun {
	run := sarifRun{Results: []sarifResult{}}
	run.Tool.Driver.Name = tool
	index := map[string]int{}
	for i, c := range Checks {
		index[c.ID] = i
		run.Tool.Driver.Rules = append(run.Tool.Driver.Rules, sarifRule{c.ID, sarifText{c.Title}, sarifText{c.Hint}})
	}
	for _, f := range list {
		level := string(f.Severity)
		if f.Severity == Info {
			level = "note"
		}
		name := f.Object.Kind + " " + f.Object.String()
		text := name + ": "
		if f.Field != "" {
			text += f.Field + ": "
		}
		where := sarifLocation{Logical: []sarifLogical{{name, "object"}}}
		if f.File != "" {
			where.Physical = &sarifPhysical{}
			where.Physical.Artifact.URI = filepath.ToSlash(f.File)
			where.Physical.Region.StartLine = f.Line
		}
		run.Results = append(run.Results, sarifResult{f.Check, index[f.Check], level, sarifText{text + f.Message}, []sarifLocation{where}})
	}
	return run
}

func (run sarifRun) write(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(sarifLog{"https://json.schemastore.org/sarif-2.1.0.json", "2.1.0", []sarifRun{run}})
}
