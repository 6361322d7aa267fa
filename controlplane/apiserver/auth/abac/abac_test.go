package abac

import (
	"fmt"
	"strings"
	"testing"

	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
)

func line(spec string) string {
	return fmt.Sprintf(`{"apiVersion":"abac.authorization.kubernetes.io/v1beta1","kind":"Policy","spec":{%s}}`, spec)
}

func TestAuthorize(t *testing.T) {
	policies, err := Parse([]byte(strings.Join([]string{
		"# who may what", "", line(`"user":"alice","namespace":"*","resource":"*","apiGroup":"*"`),
		line(`"user":"bob","namespace":"projects","resource":"pods","readonly":true`),
		line(`"group":"ops","nonResourcePath":"/metrics*","readonly":true`),
		line(`"user":"carol","group":"night","namespace":"*","resource":"nodes"`),
		line(`"user":"*","nonResourcePath":"/version"`),
		line(`"group":"all","resource":"nodes","readonly":true`),
	}, "\n")))
	if err != nil {
		t.Fatal(err)
	}
	for request, want := range map[string]bool{
		"alice: delete deployments.apps ns": true, "alice: get nodes -": true, "alice: get /metrics": false,
		"bob: list pods projects": true, "bob: create pods projects": false, "bob: list pods other": false, "bob: list secrets projects": false, "bob: list pods.x projects": false,
		"dan,ops: get /metrics/slis": true, "dan,ops: post /metrics": false, "dan,ops: get /livez": false, "dan: get /metrics": false,
		"carol: get nodes -": false, "eve,night: get nodes -": false, "carol,day,night: get nodes -": true,
		"eve: get /version": true, "eve: get /version/x": false,
		"eve,all: get nodes -": true, "eve,all: get nodes ns": false,
	} {
		who, what, _ := strings.Cut(request, ": ")
		names, fields := strings.Split(who, ","), strings.Fields(what)
		a := authorizer.AttributesRecord{User: &user.DefaultInfo{Name: names[0], Groups: names[1:]}, Verb: fields[0]}
		if len(fields) == 2 {
			a.Path = fields[1]
		} else {
			a.ResourceRequest = true
			a.Resource, a.APIGroup, _ = strings.Cut(fields[1], ".")
			a.Namespace = strings.TrimPrefix(fields[2], "-")
		}
		got, _, err := policies.Authorize(t.Context(), a)
		if err != nil || (got == authorizer.DecisionAllow) != want || got == authorizer.DecisionDeny {
			t.Errorf("%s: %v, %v", request, got, err)
		}
	}
	resources, urls, _, _ := policies.RulesFor(t.Context(), &user.DefaultInfo{Name: "bob", Groups: []string{"ops"}}, "projects")
	if len(resources) != 1 || fmt.Sprint(resources[0].GetVerbs(), resources[0].GetResources()) != "[get list watch] [pods]" || len(urls) != 2 {
		t.Errorf("%v, %v", resources, urls)
	}
}

func TestParseErrors(t *testing.T) {
	good := line(`"user":"a"`)
	for bad, want := range map[string]string{
		"{":                                "line 2: unexpected EOF",
		line(`"user":"a","readonyl":true`): `line 2: json: unknown field "readonyl"`,
		line(`"resource":"pods"`):          "line 2: spec: it must name a user or a group",
		good + good:                        "line 2: there is more than one object",
		`{"user":"a","resource":"*"}`:      `line 2: json: unknown field "user"`,
		`{"apiVersion":"v1","kind":"Policy","spec":{"user":"a"}}`: `line 2: it is a "Policy" of "v1", must be a Policy of abac.authorization.kubernetes.io/v1beta1`,
	} {
		if _, err := Parse([]byte(good + "\n" + bad + "\n" + good)); err == nil || err.Error() != want {
			t.Errorf("%s: %v, want %s", bad, err, want)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(line(`"user":"a"`)))
	f.Fuzz(func(t *testing.T, content []byte) {
		policies, _ := Parse(content)
		for i := range policies {
			if policies[i].User == "" && policies[i].Group == "" {
				t.Error("a policy about nobody")
			}
		}
	})
}
