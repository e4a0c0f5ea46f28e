package sandbox
import ("testing";"fmt";"encoding/json"
v1 "github.com/google/go-containerregistry/pkg/v1")
func TestX(t *testing.T) {
	c := appImage(t, v1.Config{}).write(t)
	for _, k := range []string{"process","namespaces","runc","crun",""} {
		t.Run(k, func(t *testing.T) {
			c.Isolation = k
			r, p := report(t, c)
			b, _ := json.MarshalIndent(r, "", " ")
			fmt.Println(string(b))
			b, _ = json.MarshalIndent(p.Isolation(), "", " ")
			fmt.Println(string(b), p.exit)
		})
	}
}
